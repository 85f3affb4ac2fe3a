"""The first SMS of a number, and an index of the messages of one number

Revision ID: 0004
Revises: 0003
"""
from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None


def upgrade():
    op.add_column('phone_numbers', sa.Column('first_sms_at', sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb'), nullable=True))
    op.execute(
        'UPDATE phone_numbers SET first_sms_at = (SELECT MIN(received_at) FROM messages'
        ' WHERE messages.digits = phone_numbers.digits'
        ' AND messages.phone_number_id = phone_numbers.id)'
    )
    op.create_index(op.f('ix_messages_user_id_digits_id'), 'messages', ['user_id', 'digits', 'id'], unique=False)
    op.drop_index(op.f('ix_messages_digits_received_at'), table_name='messages')


def downgrade():
    op.create_index(op.f('ix_messages_digits_received_at'), 'messages', ['digits', 'received_at'], unique=False)
    op.drop_index(op.f('ix_messages_user_id_digits_id'), table_name='messages')
    op.drop_column('phone_numbers', 'first_sms_at')
