//! A first look at handshake messages.

use std::fmt;

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;

use crate::identity::TunnelPublic;
use crate::wire::WIREGUARD_COOKIE_LEN;

/// Tells initiations and responses made by somebody who knows this agent's tunnel key from noise, at the cost of one hash (the field
/// mac1; WireGuard paper, section 5.4.4). It proves nothing else: keys are public.
pub struct HandshakeFilter(RateLimiter);

impl HandshakeFilter {
    /// A filter for the agent with this key.
    #[must_use]
    pub fn new(own_key: &TunnelPublic) -> Self {
        // Never "under load", so that nobody is sent a cookie: the port is silent to strangers.
        Self(RateLimiter::new(&x25519::PublicKey::from(*own_key.as_bytes()), u64::MAX))
    }

    /// Whether the message was made for this agent's key.
    #[must_use]
    pub fn is_for_us(&self, message: &[u8]) -> bool {
        self.0.verify_packet(None, message, &mut [0; WIREGUARD_COOKIE_LEN]).is_ok()
    }
}

impl fmt::Debug for HandshakeFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandshakeFilter")
    }
}
