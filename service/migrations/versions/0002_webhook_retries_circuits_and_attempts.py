"""Webhook retries, circuits and attempts

Revision ID: 0002
Revises: 0001
Create Date: 2026-11-24 10:18:44.753532

"""
from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from service.keys import seal, unseal

# revision identifiers, used by Alembic.
revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None

SECRETS = (('users', 'webhook_secret'), ('providers', 'secret'))


def _rewrite(table, column, change):
    """Secrets were kept as they are before; from here on they are sealed under SECRET_KEY."""
    table = sa.table(table, sa.column('id'), sa.column(column))
    value = table.c[column]
    connection = op.get_bind()
    for id, secret in connection.execute(sa.select(table.c.id, value).where(value.is_not(None))).all():
        connection.execute(table.update().where(table.c.id == id).values({column: change(secret)}))

# Whatever the server's default: all of Unicode, and rows that are transactional
TABLE = {'mysql_charset': 'utf8mb4', 'mysql_engine': 'InnoDB', 'mariadb_charset': 'utf8mb4', 'mariadb_engine': 'InnoDB'}


def upgrade():
    op.create_table('attempts',
    sa.Column('id', sa.BigInteger().with_variant(sa.INTEGER(), 'sqlite'), nullable=False),
    sa.Column('delivery_id', sa.BigInteger().with_variant(sa.INTEGER(), 'sqlite'), nullable=False),
    sa.Column('trigger', sa.String(length=16), nullable=False),
    sa.Column('started_at', sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb'), nullable=False),
    sa.Column('ms', sa.Integer(), nullable=False),
    sa.Column('result', sa.String(length=64), nullable=False),
    sa.Column('answer', sa.Text(), nullable=True),
    sa.Column('next_attempt_at', sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb'), nullable=True),
    sa.ForeignKeyConstraint(['delivery_id'], ['deliveries.id'], name=op.f('fk_attempts_delivery_id')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_attempts')),
    **TABLE
    )
    op.create_index(op.f('ix_attempts_delivery_id'), 'attempts', ['delivery_id'], unique=False)
    op.create_index(op.f('ix_attempts_started_at'), 'attempts', ['started_at'], unique=False)

    op.add_column('users', sa.Column('webhook_old_secret', sa.String(length=512), nullable=True))
    op.add_column('users', sa.Column('webhook_old_secret_until', sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb'), nullable=True))
    op.add_column('users', sa.Column('webhook_failures', sa.Integer(), server_default='0', nullable=False))
    op.add_column('users', sa.Column('webhook_open_until', sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb'), nullable=True))
    op.add_column('users', sa.Column('webhook_disabled_at', sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb'), nullable=True))

    for table, column in SECRETS:
        _rewrite(table, column, seal)


def downgrade():
    for table, column in SECRETS:
        _rewrite(table, column, unseal)
    op.drop_column('users', 'webhook_disabled_at')
    op.drop_column('users', 'webhook_open_until')
    op.drop_column('users', 'webhook_failures')
    op.drop_column('users', 'webhook_old_secret_until')
    op.drop_column('users', 'webhook_old_secret')
    op.drop_table('attempts')
