"""Longer sign-in names, and names to be shown"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Names were small ASCII letters, digits and . _ - until now: each is its own canonical form.
    with op.batch_alter_table("users", schema=None) as batch_op:
        batch_op.alter_column(
            "name", existing_type=sa.String(length=64), type_=sa.String(length=128), existing_nullable=False
        )
        batch_op.add_column(sa.Column("display_name", sa.String(length=64), nullable=False, server_default=""))


def downgrade() -> None:
    with op.batch_alter_table("users", schema=None) as batch_op:
        batch_op.drop_column("display_name")
        batch_op.alter_column(
            "name", existing_type=sa.String(length=128), type_=sa.String(length=64), existing_nullable=False
        )
