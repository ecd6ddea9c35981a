"""Whose a trace is; when tokens end, were used last, and which token they replaced.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("traces", sa.Column("caller", sa.String(length=64), nullable=False, server_default=""))
    op.add_column("tokens", sa.Column("expires", sa.Float(), nullable=True))
    op.add_column("tokens", sa.Column("used", sa.Float(), nullable=True))
    op.add_column("tokens", sa.Column("old_hash", sa.String(length=64), nullable=True))
    op.add_column("tokens", sa.Column("old_expires", sa.Float(), nullable=True))
    op.create_index("tokens_by_old_hash", "tokens", ["old_hash"], unique=False)


def downgrade() -> None:
    op.drop_index("tokens_by_old_hash", "tokens")
    for column in ("old_expires", "old_hash", "used", "expires"):
        op.drop_column("tokens", column)
    op.drop_column("traces", "caller")
