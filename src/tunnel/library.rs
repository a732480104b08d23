//! What the session library keeps of one peer.

use std::sync::Arc;

use boringtun::noise::Tunn;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;

use super::{CONTROL_OUTPUT_LEN, Initiation, TunnelIndex};

/// The library's state for a peer, which has accepted this initiation and none that is newer.
pub(super) fn new_state(
    secret: &x25519::StaticSecret,
    peer: &x25519::PublicKey,
    index: TunnelIndex,
    accepted: Option<&Initiation>,
) -> Tunn {
    let unlimited = Arc::new(RateLimiter::new(&x25519::PublicKey::from(secret), u64::MAX));
    let mut tunn = Tunn::new(secret.clone(), *peer, None, None, index.value(), Some(unlimited));
    if let Some(initiation) = accepted {
        // So that it and all older ones are replays.
        let _ = tunn.decapsulate(None, initiation, &mut [0; CONTROL_OUTPUT_LEN]);
    }
    tunn
}
