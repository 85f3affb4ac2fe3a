"""The national form of a number, worked out by the database, to find it by

Revision ID: 0010
Revises: 0009
"""
from alembic import op
import sqlalchemy as sa

revision = '0010'
down_revision = '0009'
branch_labels = None
depends_on = None

INDEX = 'ix_phone_numbers_user_id_state_national'


def upgrade():
    national = sa.Computed('substr(digits, length(phone_code) + 1)', persisted=False)
    op.add_column('phone_numbers', sa.Column('national', sa.String(length=20), national, nullable=True))
    op.create_index(INDEX, 'phone_numbers', ['user_id', 'state', 'national'], unique=False)


def downgrade():
    op.drop_index(INDEX, table_name='phone_numbers')
    op.drop_column('phone_numbers', 'national')
