//! The Internet checksum (RFC 1071).

/// The one's complement sum of 16 bit words in network order (RFC 1071), an odd last byte filled up with zero.
///
/// Adds 32 bits at a time, in the machine's byte order: the sum's bytes come out swapped as a whole (section 2 B), and
/// 64 bits hold the carries of any packet. The compiler makes vector instructions of it.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    let mut total = u64::from(u32::from_ne_bytes(last));
    for word in words {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    u16::from_be(fold(total))
}

/// The sum of sums.
pub(crate) fn combine(sums: &[u16]) -> u16 {
    fold(sums.iter().copied().map(u64::from).sum())
}

/// Adds the carries until none is left.
fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}
