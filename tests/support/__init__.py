"""What the black-box tests share: a Keylatch of one's own, upstreams that do as they are told, raw sockets."""
