"""One module per `task=`."""
