"""Which reader took the recording that a trace was made of: the page proposes the engine.

Revision ID: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("traces", sa.Column("reader", sa.String(length=40), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("traces", "reader")
