//! The BGP speaker: sessions on TCP around the state machines of crate `bgp`.
