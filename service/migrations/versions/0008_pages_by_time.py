"""Numbers, messages and deliveries of a user by time, for pages of them; where an attempt went

Revision ID: 0008
Revises: 0007
"""
from alembic import op
import sqlalchemy as sa

revision = '0008'
down_revision = '0007'
branch_labels = None
depends_on = None

INDEXES = [
    ('phone_numbers', ['user_id', 'requested_at', 'id']),
    ('messages', ['user_id', 'received_at', 'id']),
    ('messages', ['user_id', 'digits', 'received_at', 'id']),
    ('deliveries', ['user_id', 'created_at', 'id']),
    ('deliveries', ['user_id', 'state', 'created_at', 'id']),
]


def name_of(table, columns):
    return op.f('_'.join(['ix', table, *columns]))


def upgrade():
    for table, columns in INDEXES:
        op.create_index(name_of(table, columns), table, columns, unique=False)
    op.add_column('attempts', sa.Column('url', sa.String(length=2048), nullable=True))
    # The last one begins with its columns
    op.drop_index(op.f('ix_deliveries_user_id_state'), table_name='deliveries')


def downgrade():
    op.drop_column('attempts', 'url')
    op.create_index(op.f('ix_deliveries_user_id_state'), 'deliveries', ['user_id', 'state'], unique=False)
    for table, columns in reversed(INDEXES):
        op.drop_index(name_of(table, columns), table_name=table)
