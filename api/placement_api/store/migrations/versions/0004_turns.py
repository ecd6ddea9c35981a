"""Whose a job is, and when its turn is.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("caller", sa.String(length=64), nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("turn", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("jobs", "turn")
    op.drop_column("jobs", "caller")
