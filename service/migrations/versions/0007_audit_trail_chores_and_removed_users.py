"""The audit trail, when the daily chores ran, removed users, and messages by number

Revision ID: 0007
Revises: 0006
"""
from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None

TABLE = {
    'mysql_engine': 'InnoDB', 'mysql_charset': 'utf8mb4',
    'mariadb_engine': 'InnoDB', 'mariadb_charset': 'utf8mb4',
}
TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')


def upgrade():
    op.create_table('audit_entries',
    sa.Column('id', sa.BigInteger().with_variant(sa.INTEGER(), 'sqlite'), nullable=False),
    sa.Column('at', TIME, nullable=False),
    sa.Column('actor', sa.String(length=16), nullable=False),
    sa.Column('address', sa.String(length=64), nullable=True),
    sa.Column('action', sa.String(length=64), nullable=False),
    sa.Column('user_id', sa.BigInteger().with_variant(sa.INTEGER(), 'sqlite'), nullable=True),
    sa.Column('details', sa.Text(), nullable=True),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_audit_entries')),
    **TABLE
    )
    op.create_index(op.f('ix_audit_entries_at'), 'audit_entries', ['at'], unique=False)
    op.create_index(op.f('ix_audit_entries_user_id_id'), 'audit_entries', ['user_id', 'id'], unique=False)
    op.create_table('chores',
    sa.Column('name', sa.String(length=64), nullable=False),
    sa.Column('leased_until', TIME, nullable=True),
    sa.Column('done_at', TIME, nullable=True),
    sa.PrimaryKeyConstraint('name', name=op.f('pk_chores')),
    **TABLE
    )
    op.add_column('users', sa.Column('removed_at', TIME, nullable=True))
    op.create_index(op.f('ix_messages_digits_id'), 'messages', ['digits', 'id'], unique=False)


def downgrade():
    op.drop_index(op.f('ix_messages_digits_id'), table_name='messages')
    op.drop_column('users', 'removed_at')
    op.drop_table('chores')
    op.drop_table('audit_entries')
