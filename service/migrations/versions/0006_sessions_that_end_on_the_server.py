"""Sessions that end on the server: a version for each user, and those that were logged out

Revision ID: 0006
Revises: 0005
"""
from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None

TABLE = {
    'mysql_engine': 'InnoDB', 'mysql_charset': 'utf8mb4',
    'mariadb_engine': 'InnoDB', 'mariadb_charset': 'utf8mb4',
}
ASCII = mysql.VARCHAR(charset='ascii', collation='ascii_bin', length=64)


def upgrade():
    op.add_column('users', sa.Column('session_version', sa.Integer(), server_default='0', nullable=False))
    op.create_table('ended_sessions',
    sa.Column('id_hash', sa.String(length=64).with_variant(ASCII, 'mysql', 'mariadb'), nullable=False),
    sa.Column('ended_at', sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb'), nullable=False),
    sa.PrimaryKeyConstraint('id_hash', name=op.f('pk_ended_sessions')),
    **TABLE
    )
    op.create_index(op.f('ix_ended_sessions_ended_at'), 'ended_sessions', ['ended_at'], unique=False)


def downgrade():
    op.drop_table('ended_sessions')
    op.drop_column('users', 'session_version')
