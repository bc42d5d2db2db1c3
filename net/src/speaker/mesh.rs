//! Who peers with whom: the cluster's nodes and its BGP configuration, as one node's [`Config`]. Pure.
