"""The number of a provider, and the rule that found a code

Revision ID: 0003
Revises: 0002
Create Date: 2026-11-24 13:30:00

"""
from alembic import op
import sqlalchemy as sa

# revision identifiers, used by Alembic.
revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade():
    op.add_column('providers', sa.Column('number', sa.String(length=20), nullable=True))
    op.add_column('messages', sa.Column('otp_rule', sa.String(length=32), nullable=True))


def downgrade():
    op.drop_column('messages', 'otp_rule')
    op.drop_column('providers', 'number')
