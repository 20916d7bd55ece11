//! What a relay holds, as a bitmap for the server.

use outbox_core::store::Sequence;

/// The most bytes of a bitmap: half a million sequences. Far below what a server takes in one packet.
const BYTES_MAX: usize = 64 * 1024;

/// Sequences from `base` on, one bit each, the lowest bit of a byte first.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bitmap {
    pub(super) base: Sequence,
    pub(super) bits: Vec<u8>,
    /// How many sequences lie beyond its end.
    pub(super) left_out: usize,
}

impl Bitmap {
    /// Of ascending sequences.
    pub(super) fn new(known: &[Sequence]) -> Self {
        let base = known.first().copied().unwrap_or_default();
        let mut bits = Vec::new();
        for (n, sequence) in known.iter().enumerate() {
            let place = usize::try_from(sequence - base).unwrap_or(usize::MAX);
            let byte = place / 8;
            if byte >= BYTES_MAX {
                return Self { base, bits, left_out: known.len() - n };
            }
            if byte >= bits.len() {
                bits.resize(byte + 1, 0);
            }
            bits[byte] |= 1 << (place % 8);
        }
        Self { base, bits, left_out: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sequence_has_its_bit() {
        let bitmap = Bitmap::new(&[10, 11, 18, 30]);
        assert_eq!(bitmap, Bitmap { base: 10, bits: vec![0b11, 0b1, 0b1_0000], left_out: 0 });
        assert_eq!(Bitmap::new(&[]), Bitmap { base: 0, bits: vec![], left_out: 0 });
    }

    #[test]
    fn what_is_far_away_is_left_out_and_counted() {
        let end = 1 + 8 * i64::try_from(BYTES_MAX).unwrap();
        let bitmap = Bitmap::new(&[1, end - 1, end, end + 5]);
        assert_eq!((bitmap.bits.len(), bitmap.left_out), (BYTES_MAX, 2));
    }
}
