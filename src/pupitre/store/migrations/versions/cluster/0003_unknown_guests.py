"""Guests that a host has and the database does not know; doubts with a proof"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("doubts", sa.Column("proven", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_table(
        "unknown_guests",
        sa.Column("host", sa.String(length=64), nullable=False),
        sa.Column("desktop", sa.String(length=36), nullable=False),
        sa.Column("boot", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("owner", sa.String(length=36), nullable=False),
        sa.Column("image", sa.String(length=64), nullable=False),
        sa.Column("proven", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("host", "desktop", name=op.f("pk_unknown_guests")),
    )


def downgrade() -> None:
    op.drop_table("unknown_guests")
    with op.batch_alter_table("doubts", schema=None) as batch_op:
        batch_op.drop_column("proven")
