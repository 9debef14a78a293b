"""Pages: server-made HTML that works without scripts where it can; scripts add liveness.

After a form is sent the answer is a redirect (303) or, for htmx, the piece of the
page that changed.
"""

from pupitre.portal.pages import account, audit, console, desktops, halt, host, hosts, live, locks, sign_in

ROUTERS = tuple(
    module.router for module in (sign_in, desktops, console, hosts, host, halt, locks, audit, account, live)
)
