"""What each `mrcnn` command does; imported only when it is called, so that `mrcnn --help` is quick."""
