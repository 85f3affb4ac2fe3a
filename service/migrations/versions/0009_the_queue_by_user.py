"""What is pending by user, so that a user whose circuit is open is passed over whole

Revision ID: 0009
Revises: 0008
"""
from alembic import op

revision = '0009'
down_revision = '0008'
branch_labels = None
depends_on = None

OLD = 'ix_deliveries_state_next_attempt_at'
NEW = 'ix_deliveries_state_user_id_next_attempt_at'


def upgrade():
    op.create_index(NEW, 'deliveries', ['state', 'user_id', 'next_attempt_at'], unique=False)
    op.drop_index(OLD, table_name='deliveries')


def downgrade():
    op.create_index(OLD, 'deliveries', ['state', 'next_attempt_at'], unique=False)
    op.drop_index(NEW, table_name='deliveries')
