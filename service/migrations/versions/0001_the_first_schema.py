"""The first schema

Revision ID: 0001
Revises: 
Create Date: 2026-11-24 09:48:23.024643

"""
from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

# revision identifiers, used by Alembic.
revision = '0001'
down_revision = None
branch_labels = None
depends_on = None

# Whatever the server's default: all of Unicode, and rows that are transactional
TABLE = {'mysql_charset': 'utf8mb4', 'mysql_engine': 'InnoDB', 'mariadb_charset': 'utf8mb4', 'mariadb_engine': 'InnoDB'}


def upgrade():
    op.create_table('operators',
    sa.Column('id', sa.BigInteger().with_variant(sa.INTEGER(), 'sqlite'), autoincrement=False, nullable=False),
    sa.Column('name', sa.String(length=255), nullable=False),
    sa.Column('country_id', sa.Integer(), nullable=True),
    sa.Column('updated_at', sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb'), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_operators')),
    **TABLE
    )
    op.create_table('providers',
    sa.Column('id', sa.BigInteger().with_variant(sa.INTEGER(), 'sqlite'), nullable=False),
    sa.Column('name', sa.String(length=64), nullable=False),
    sa.Column('format', sa.String(length=32), nullable=False),
    sa.Column('key_hash', sa.String(length=64).with_variant(mysql.VARCHAR(charset='ascii', collation='ascii_bin', length=64), 'mariadb').with_variant(mysql.VARCHAR(charset='ascii', collation='ascii_bin', length=64), 'mysql'), nullable=False),
    sa.Column('secret', sa.String(length=512), nullable=True),
    sa.Column('active', sa.Boolean(), nullable=False),
    sa.Column('created_at', sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb'), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_providers')),
    sa.UniqueConstraint('key_hash', name=op.f('uq_providers_key_hash')),
    sa.UniqueConstraint('name', name=op.f('uq_providers_name')),
    **TABLE
    )
    op.create_table('system_summaries',
    sa.Column('day', sa.Date(), nullable=False),
    sa.Column('shard', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('unmatched', sa.Integer(), nullable=False),
    sa.Column('requests', sa.Integer(), nullable=False),
    sa.Column('numbers', sa.Integer(), nullable=False),
    sa.Column('sms', sa.Integer(), nullable=False),
    sa.Column('otps', sa.Integer(), nullable=False),
    sa.Column('webhooks_delivered', sa.Integer(), nullable=False),
    sa.PrimaryKeyConstraint('day', 'shard', name=op.f('pk_system_summaries')),
    **TABLE
    )
    op.create_table('users',
    sa.Column('id', sa.BigInteger().with_variant(sa.INTEGER(), 'sqlite'), nullable=False),
    sa.Column('name', sa.String(length=255), nullable=False),
    sa.Column('key_hash', sa.String(length=64).with_variant(mysql.VARCHAR(charset='ascii', collation='ascii_bin', length=64), 'mariadb').with_variant(mysql.VARCHAR(charset='ascii', collation='ascii_bin', length=64), 'mysql'), nullable=False),
    sa.Column('active', sa.Boolean(), nullable=False),
    sa.Column('approved', sa.Boolean(), nullable=False),
    sa.Column('manager_id', sa.BigInteger().with_variant(sa.INTEGER(), 'sqlite'), nullable=True),
    sa.Column('number_format', sa.String(length=16), nullable=True),
    sa.Column('daily_limit', sa.Integer(), nullable=True),
    sa.Column('webhook_url', sa.String(length=2048), nullable=True),
    sa.Column('webhook_secret', sa.String(length=512), nullable=False),
    sa.Column('created_at', sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb'), nullable=False),
    sa.ForeignKeyConstraint(['manager_id'], ['users.id'], name=op.f('fk_users_manager_id')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_users')),
    sa.UniqueConstraint('key_hash', name=op.f('uq_users_key_hash')),
    **TABLE
    )
    op.create_table('phone_numbers',
    sa.Column('id', sa.BigInteger().with_variant(sa.INTEGER(), 'sqlite'), nullable=False),
    sa.Column('user_id', sa.BigInteger().with_variant(sa.INTEGER(), 'sqlite'), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('digits', sa.String(length=20), nullable=True),
    sa.Column('country_id', sa.Integer(), nullable=False),
    sa.Column('operator_id', sa.Integer(), nullable=True),
    sa.Column('phone_code', sa.String(length=8), nullable=True),
    sa.Column('idempotency_hash', sa.String(length=64).with_variant(mysql.VARCHAR(charset='ascii', collation='ascii_bin', length=64), 'mariadb').with_variant(mysql.VARCHAR(charset='ascii', collation='ascii_bin', length=64), 'mysql'), nullable=True),
    sa.Column('requested_at', sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb'), nullable=False),
    sa.Column('assigned_at', sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb'), nullable=True),
    sa.ForeignKeyConstraint(['user_id'], ['users.id'], name=op.f('fk_phone_numbers_user_id')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_phone_numbers')),
    sa.UniqueConstraint('user_id', 'idempotency_hash', name=op.f('uq_phone_numbers_user_id_idempotency_hash')),
    **TABLE
    )
    op.create_index(op.f('ix_phone_numbers_digits_assigned_at'), 'phone_numbers', ['digits', 'assigned_at'], unique=False)
    op.create_index(op.f('ix_phone_numbers_user_id_state_id'), 'phone_numbers', ['user_id', 'state', 'id'], unique=False)

    op.create_table('user_summaries',
    sa.Column('user_id', sa.BigInteger().with_variant(sa.INTEGER(), 'sqlite'), autoincrement=False, nullable=False),
    sa.Column('day', sa.Date(), nullable=False),
    sa.Column('requests', sa.Integer(), nullable=False),
    sa.Column('numbers', sa.Integer(), nullable=False),
    sa.Column('sms', sa.Integer(), nullable=False),
    sa.Column('otps', sa.Integer(), nullable=False),
    sa.Column('webhooks_delivered', sa.Integer(), nullable=False),
    sa.ForeignKeyConstraint(['user_id'], ['users.id'], name=op.f('fk_user_summaries_user_id')),
    sa.PrimaryKeyConstraint('user_id', 'day', name=op.f('pk_user_summaries')),
    **TABLE
    )
    op.create_table('messages',
    sa.Column('id', sa.BigInteger().with_variant(sa.INTEGER(), 'sqlite'), nullable=False),
    sa.Column('user_id', sa.BigInteger().with_variant(sa.INTEGER(), 'sqlite'), nullable=True),
    sa.Column('phone_number_id', sa.BigInteger().with_variant(sa.INTEGER(), 'sqlite'), nullable=True),
    sa.Column('provider', sa.String(length=64), nullable=False),
    sa.Column('digits', sa.String(length=20), nullable=False),
    sa.Column('sms_text', sa.Text().with_variant(mysql.MEDIUMTEXT(), 'mariadb').with_variant(mysql.MEDIUMTEXT(), 'mysql'), nullable=False),
    sa.Column('otp_code', sa.String(length=32), nullable=True),
    sa.Column('dedupe_key', sa.String(length=64).with_variant(mysql.VARCHAR(charset='ascii', collation='ascii_bin', length=64), 'mariadb').with_variant(mysql.VARCHAR(charset='ascii', collation='ascii_bin', length=64), 'mysql'), nullable=True),
    sa.Column('received_at', sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb'), nullable=False),
    sa.Column('created_at', sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb'), nullable=False),
    sa.ForeignKeyConstraint(['phone_number_id'], ['phone_numbers.id'], name=op.f('fk_messages_phone_number_id')),
    sa.ForeignKeyConstraint(['user_id'], ['users.id'], name=op.f('fk_messages_user_id')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_messages')),
    sa.UniqueConstraint('dedupe_key', name=op.f('uq_messages_dedupe_key')),
    **TABLE
    )
    op.create_index(op.f('ix_messages_digits_received_at'), 'messages', ['digits', 'received_at'], unique=False)
    op.create_index(op.f('ix_messages_user_id_id'), 'messages', ['user_id', 'id'], unique=False)

    op.create_table('deliveries',
    sa.Column('id', sa.BigInteger().with_variant(sa.INTEGER(), 'sqlite'), nullable=False),
    sa.Column('webhook_id', sa.String(length=64).with_variant(mysql.VARCHAR(charset='ascii', collation='ascii_bin', length=64), 'mariadb').with_variant(mysql.VARCHAR(charset='ascii', collation='ascii_bin', length=64), 'mysql'), nullable=False),
    sa.Column('user_id', sa.BigInteger().with_variant(sa.INTEGER(), 'sqlite'), nullable=False),
    sa.Column('message_id', sa.BigInteger().with_variant(sa.INTEGER(), 'sqlite'), nullable=True),
    sa.Column('body', sa.LargeBinary(length=1048576), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('attempts', sa.Integer(), nullable=False),
    sa.Column('next_attempt_at', sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb'), nullable=True),
    sa.Column('lease', sa.String(length=64).with_variant(mysql.VARCHAR(charset='ascii', collation='ascii_bin', length=64), 'mariadb').with_variant(mysql.VARCHAR(charset='ascii', collation='ascii_bin', length=64), 'mysql'), nullable=True),
    sa.Column('leased_until', sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb'), nullable=True),
    sa.Column('last_result', sa.String(length=64), nullable=True),
    sa.Column('created_at', sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb'), nullable=False),
    sa.Column('delivered_at', sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb'), nullable=True),
    sa.ForeignKeyConstraint(['message_id'], ['messages.id'], name=op.f('fk_deliveries_message_id')),
    sa.ForeignKeyConstraint(['user_id'], ['users.id'], name=op.f('fk_deliveries_user_id')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_deliveries')),
    sa.UniqueConstraint('webhook_id', name=op.f('uq_deliveries_webhook_id')),
    **TABLE
    )
    op.create_index(op.f('ix_deliveries_message_id'), 'deliveries', ['message_id'], unique=False)
    op.create_index(op.f('ix_deliveries_user_id_state'), 'deliveries', ['user_id', 'state'], unique=False)
    op.create_index(op.f('ix_deliveries_state_next_attempt_at'), 'deliveries', ['state', 'next_attempt_at'], unique=False)


def downgrade():
    op.drop_table('deliveries')
    op.drop_table('messages')
    op.drop_table('user_summaries')
    op.drop_table('phone_numbers')
    op.drop_table('users')
    op.drop_table('system_summaries')
    op.drop_table('providers')
    op.drop_table('operators')
