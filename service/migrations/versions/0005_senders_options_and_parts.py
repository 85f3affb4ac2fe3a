"""Who sent an SMS, why it is nobody's, the options of a provider, and the parts of long SMS

Revision ID: 0005
Revises: 0004
"""
import json

from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None

TABLE = {
    'mysql_engine': 'InnoDB', 'mysql_charset': 'utf8mb4',
    'mariadb_engine': 'InnoDB', 'mariadb_charset': 'utf8mb4',
}
ASCII = mysql.VARCHAR(charset='ascii', collation='ascii_bin', length=64)
PROVIDERS = sa.table(
    'providers', sa.column('id', sa.BigInteger), sa.column('number', sa.String), sa.column('options', sa.Text)
)


def upgrade():
    op.add_column('messages', sa.Column('sender', sa.String(length=64), nullable=True))
    op.add_column('messages', sa.Column('unmatched', sa.String(length=32), nullable=True))
    op.add_column('providers', sa.Column('options', sa.Text(), nullable=True))
    for id, number in op.get_bind().execute(sa.select(PROVIDERS.c.id, PROVIDERS.c.number)).all():
        if number:
            options = json.dumps({'numbers': {'': number}})
            op.execute(PROVIDERS.update().where(PROVIDERS.c.id == id).values(options=options))
    op.drop_column('providers', 'number')
    op.create_table('sms_parts',
    sa.Column('id', sa.BigInteger().with_variant(sa.INTEGER(), 'sqlite'), nullable=False),
    sa.Column('message_key', sa.String(length=64).with_variant(ASCII, 'mysql', 'mariadb'), nullable=False),
    sa.Column('number', sa.Integer(), nullable=False),
    sa.Column('source', sa.String(length=64), nullable=False),
    sa.Column('sms', sa.Text().with_variant(mysql.MEDIUMTEXT(), 'mysql', 'mariadb'), nullable=False),
    sa.Column('created_at', sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb'), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_sms_parts')),
    sa.UniqueConstraint('message_key', 'number', name=op.f('uq_sms_parts_message_key_number')),
    **TABLE
    )
    op.create_index(op.f('ix_sms_parts_created_at'), 'sms_parts', ['created_at'], unique=False)


def downgrade():
    op.drop_table('sms_parts')
    op.add_column('providers', sa.Column('number', sa.String(length=20), nullable=True))
    for id, options in op.get_bind().execute(sa.select(PROVIDERS.c.id, PROVIDERS.c.options)).all():
        number = json.loads(options or '{}').get('numbers', {}).get('')
        op.execute(PROVIDERS.update().where(PROVIDERS.c.id == id).values(number=number))
    op.drop_column('providers', 'options')
    op.drop_column('messages', 'unmatched')
    op.drop_column('messages', 'sender')
