//! The order in which the endpoints of a backend take turns: each endpoint as often as its weight
//! says, and as evenly as can be.

use std::sync::Arc;

/// The most turns in one round, beside one turn for each endpoint. Larger weights are scaled down.
const MOST: u64 = 16_384;

/// One round of turns: indices into the endpoints with these weights. An endpoint with weight 0 has
/// no turn. With equal weights each endpoint has one turn, in the given order. There are at most
/// 65,536 endpoints.
pub fn turns(weights: &[u32]) -> Arc<[u16]> {
    let weights = scaled(weights);
    let indices = 0..=u16::MAX;
    if weights.iter().all(|weight| *weight == 1) {
        return indices.take(weights.len()).collect();
    }
    // Turn `n` of an endpoint comes in the middle of the part `n` of the round. The round is cut
    // into as many parts as the endpoint has turns.
    let of = |(index, weight): (u16, u64)| {
        (0..weight).map(move |nth| ((2 * nth + 1) * (u64::from(u32::MAX) / weight), index))
    };
    let mut turns: Vec<(u64, u16)> = indices.zip(weights).flat_map(of).collect();
    turns.sort_unstable();
    turns.into_iter().map(|(_, index)| index).collect()
}

/// Weights in the same proportion that are as small as can be. No weight above 0 becomes 0.
pub(super) fn scaled(weights: &[u32]) -> Vec<u64> {
    let divisor = weights.iter().fold(0, |divisor, weight| gcd(divisor, u64::from(*weight)));
    let mut scaled: Vec<u64> =
        weights.iter().map(|weight| u64::from(*weight) / divisor.max(1)).collect();
    let sum: u64 = scaled.iter().sum();
    if sum > MOST.max(scaled.len() as u64) {
        let less = |weight: &u64| if *weight == 0 { 0 } else { (weight * MOST / sum).max(1) };
        scaled = scaled.iter().map(less).collect();
    }
    scaled
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_weights_take_turns_in_order() {
        assert_eq!(*turns(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(*turns(&[200, 200]), [0, 1]);
        assert_eq!(*turns(&[0, 5, 0]), [1]);
        assert!(turns(&[]).is_empty() && turns(&[0]).is_empty());
    }

    #[test]
    fn a_round_has_each_endpoint_as_often_as_its_weight_and_spreads_it() {
        assert_eq!(*turns(&[3, 1]), [0, 0, 1, 0]);
        for weights in [&[5, 3, 1][..], &[256, 1, 128], &[7, 7, 7, 2], &[90, 10]] {
            let turns = turns(weights);
            let sum: u32 = weights.iter().sum();
            let divisor = sum as usize / turns.len();
            for (index, weight) in weights.iter().enumerate() {
                let at: Vec<_> =
                    (0..turns.len()).filter(|turn| usize::from(turns[*turn]) == index).collect();
                assert_eq!(at.len() * divisor, *weight as usize, "{weights:?}");
                let even = turns.len().div_ceil(at.len());
                let far = at.windows(2).all(|pair| pair[1] - pair[0] <= even + 2);
                assert!(far, "{weights:?}: {index} at {at:?}");
            }
        }
    }

    #[test]
    fn many_endpoints_with_large_weights_make_a_round_of_bounded_length() {
        let weights: Vec<u32> = (0..10_000).map(|n| 25_600 - n % 97).collect();
        let turns = turns(&weights);
        assert!(turns.len() <= 26_384 && turns.len() >= 10_000, "{}", turns.len());
    }
}
