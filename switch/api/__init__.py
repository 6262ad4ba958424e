# SPDX-License-Identifier: Apache-2.0
"""The HTTP API on the control socket: app.py the routes, models.py the shapes, sockets.py where it listens."""
