"""RemoteStorage: the files beneath one directory of a server reached by SSH."""
