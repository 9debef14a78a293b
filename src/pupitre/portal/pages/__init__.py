"""Pages: server-made HTML that works without scripts where it can; scripts add liveness.

After a form is sent the answer is a redirect (303) or, for htmx, the piece of the
page that changed.
"""

from pupitre.portal.pages import account, console, desktops, hosts, live, sign_in

ROUTERS = tuple(module.router for module in (sign_in, desktops, console, hosts, account, live))
