"""The best so far of a job that runs.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("best", sa.Float(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "best")
