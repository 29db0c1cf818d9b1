"""Front ends: processes that hold the devices' connections of one server.

A front end answers gRPC over TLS on the server's port, which it shares with the others, and asks
the process that holds the round for everything else. So gRPC, TLS and the reading of messages use
several processors; sessions, limits, the round, the ledger and the store stay in one place.

group    starts front ends, starts them again, ends them     port     the address that they share
process  what a front end runs                               remote   its side of the conversation
answers  the round's side of the conversation                wire     its frames

A device's message counts once the round has taken it, and only then does the front end answer. So
a front end that is killed loses nothing: its devices call again, and land at another.
"""
