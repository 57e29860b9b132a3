//! In which order a round visits the contenders. Pure.

/// A B C, then C B A, then B C A, A C B, ...: neighbours in time alternate, and over the rounds
/// each comes first, last and in between equally often, so that drift of the machine favours none.
pub fn order(count: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.rotate_left((round / 2) % count.max(1));
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_alternate() {
        let rounds: Vec<_> = (0..4).map(|round| order(2, round)).collect();
        assert_eq!(rounds, [[0, 1], [1, 0], [1, 0], [0, 1]]);
    }

    #[test]
    fn each_round_has_each_once_and_each_place_is_shared_out() {
        let count = 3;
        let mut places = vec![vec![0; count]; count];
        for round in 0..2 * count {
            let order = order(count, round);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2]);
            for (place, who) in order.into_iter().enumerate() {
                places[who][place] += 1;
            }
        }
        assert!(places.iter().flatten().all(|times| *times == 2), "{places:?}");
    }

    #[test]
    fn nobody_is_no_order() {
        assert!(order(0, 3).is_empty());
    }
}
