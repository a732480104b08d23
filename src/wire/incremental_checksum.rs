//! Updating an Internet checksum for changed words instead of summing the packet again.

/// The difference that replacing some 16 bit words makes to a one's complement sum.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SumChange(u32);

impl SumChange {
    /// Adds the replacement of `old` by `new`, both of the same even length and at an even offset
    /// of what the checksum covers.
    pub(super) fn replace(mut self, old: &[u8], new: &[u8]) -> Self {
        debug_assert!(old.len() == new.len() && old.len().is_multiple_of(2));
        for word in old.chunks_exact(2) {
            self.0 += u32::from(!word_of(word));
        }
        for word in new.chunks_exact(2) {
            self.0 += u32::from(word_of(word));
        }
        self
    }

    /// The new value of a checksum field: HC' = ~(~HC + ~m + m') (RFC 1624, equation 3).
    pub(super) fn apply(self, checksum: u16) -> u16 {
        !self.apply_to_sum(!checksum)
    }

    /// The new value of a field that holds a sum which is not complemented yet.
    pub(super) fn apply_to_sum(self, sum: u16) -> u16 {
        fold(self.0 + u32::from(sum))
    }
}

fn word_of(bytes: &[u8]) -> u16 {
    match *bytes {
        [high, low] => u16::from_be_bytes([high, low]),
        _ => 0,
    }
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn example_of_rfc_1624() {
        // Section 4: the checksum is 0xdd2f, a field changes from 0x5555 to 0x3285, and the sum
        // without carry gives 0x0000, where equation 2 of RFC 1141 gives 0xffff.
        let change = SumChange::default().replace(&[0x55, 0x55], &[0x32, 0x85]);
        assert_eq!(change.apply(0xdd2f), 0x0000);
    }
}
