"""Secure aggregation: the server learns a sum of enough reports and nothing else.

ideal       what is computed, without the protocol: the fast path of large simulations
local       the protocol in one process, with the same interface
device      the device's phases             server      the server's phases
checks      what a device insists on        phase       what the server's phases share
dealing     sharing and reading secrets     opening     from shares to the plain sum
config      a round's public description    parameters  neighbours and threshold
messages    bodies (PROTOCOL.md)            wire        frames
keys        keys, boxes, signatures         masks       key streams
sharing     Shamir                          graph       who is whose neighbour
noise       noise that survives dropout     traffic     bytes per device
ring        arithmetic modulo 2^b           packing     b bits to an entry
errors      the tree of what can go wrong
"""
