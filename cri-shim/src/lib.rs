//! cri-shim
