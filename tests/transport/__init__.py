"""The transport: its parser, its pool, and the whole over fake streams and real sockets."""
