"""Commands for ppap-host that compare, search and calibrate guidance, and the plots they draw.

It registers nothing but commands: entry points of the group ``ppap.commands``.
"""

from __future__ import annotations

from ppap_host.plugins.hookspecs import INTERFACE

ppap_interface = INTERFACE
