//! What a handful of noisy runs allows to say: means with their 95 % intervals. Pure functions.

use serde::{Deserialize, Serialize};

/// A mean or median, and the interval that holds the true one in 95 of 100 such measurements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    pub low: f64,
    pub middle: f64,
    pub high: f64,
    /// How many values (or pairs) it comes from.
    pub count: usize,
}

impl Interval {
    /// Of the geometric mean of ratios, from Student's t on their logarithms: a ratio of 2 and one
    /// of 1/2 are equally far from 1. `None` with fewer than two, or one that isn't positive.
    pub fn of_ratios(ratios: &[f64]) -> Option<Self> {
        if ratios.iter().any(|ratio| !(ratio.is_finite() && *ratio > 0.0)) {
            return None;
        }
        let logarithms: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).collect();
        let of = Self::of_values(&logarithms)?;
        Some(Self { low: of.low.exp(), middle: of.middle.exp(), high: of.high.exp(), ..of })
    }

    /// Of the arithmetic mean, from Student's t. `None` with fewer than two values.
    pub fn of_values(values: &[f64]) -> Option<Self> {
        if values.len() < 2 {
            return None;
        }
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let square = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        let error = (square / (count - 1.0) / count).sqrt();
        let half = t_95(values.len() - 1) * error;
        Some(Self { low: mean - half, middle: mean, high: mean + half, count: values.len() })
    }

    /// Of the median, from the ranks of the values alone, so that single values that are far off
    /// change nothing. `None` with fewer than six values, whose range is no such interval.
    pub fn of_median(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len();
        // Each value is below the true median with a chance of 1/2. `outside` is the chance that at
        // most `rank` of them are.
        let mut chance = 0.5_f64.powi(i32::try_from(count).ok()?);
        let (mut outside, mut rank) = (chance, 0);
        while outside <= 0.025 {
            chance *= (count - rank) as f64 / (rank + 1) as f64;
            outside += chance;
            rank += 1;
        }
        let low = rank.checked_sub(1)?;
        Some(Self {
            low: sorted[low],
            middle: median(&sorted)?,
            high: sorted[count - 1 - low],
            count,
        })
    }
}

/// The middle value, or the mean of the two in the middle. `None` of none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        even if even % 2 == 0 => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        _ => Some(sorted[middle]),
    }
}

/// The two-sided 95 % quantile of Student's t. Exact to four digits up to 30 degrees of freedom;
/// above, the Cornish-Fisher expansion, which is off by less than 0.001 there.
fn t_95(freedom: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010,
        2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739,
        2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
    ];
    const NORMAL: f64 = 1.959_964;
    if let Some(exact) = TABLE.get(freedom.wrapping_sub(1)) {
        return *exact;
    }
    let (z, n) = (NORMAL, freedom as f64);
    z + (z.powi(3) + z) / (4.0 * n)
        + (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * n.powi(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(left: f64, right: f64) {
        assert!((left - right).abs() < 1e-3 * right.abs().max(1.0), "{left} is not {right}");
    }

    #[test]
    fn equal_values_leave_no_doubt() {
        let of = Interval::of_values(&[3.0; 5]).expect("five");
        assert_eq!((of.low, of.middle, of.high, of.count), (3.0, 3.0, 3.0, 5));
    }

    #[test]
    fn the_interval_of_a_textbook_sample() {
        // 1, 2, 3, 4, 5: mean 3, s = sqrt(2.5), t(4) = 2.7764.
        let of = Interval::of_values(&[1.0, 2.0, 3.0, 4.0, 5.0]).expect("five");
        near(of.middle, 3.0);
        near(of.high - of.middle, 2.7764 * (2.5_f64 / 5.0).sqrt());
        near(of.middle - of.low, of.high - of.middle);
    }

    #[test]
    fn a_ratio_and_its_inverse_cancel() {
        let of = Interval::of_ratios(&[2.0, 0.5, 2.0, 0.5]).expect("four");
        near(of.middle, 1.0);
        near(of.low * of.high, 1.0);
        assert!(of.low < 1.0 && of.high > 1.0);
    }

    #[test]
    fn too_few_or_impossible_ratios_say_nothing() {
        assert_eq!(Interval::of_ratios(&[1.0]), None);
        assert_eq!(Interval::of_ratios(&[1.0, 0.0]), None);
        assert_eq!(Interval::of_ratios(&[1.0, f64::NAN]), None);
        assert_eq!(Interval::of_ratios(&[1.0, f64::INFINITY]), None);
    }

    #[test]
    fn the_interval_of_a_median_comes_from_ranks() {
        let values = |count: u32| (1..=count).map(f64::from).collect::<Vec<_>>();
        // The tables of the sign test: ranks 1 and 6 of 6, 3 and 12 of 14.
        for (count, low, high) in [(6, 1.0, 6.0), (14, 3.0, 12.0)] {
            let of = Interval::of_median(&values(count)).expect("enough");
            assert_eq!((of.low, of.high), (low, high), "{count} values");
        }
        assert_eq!(Interval::of_median(&values(5)), None);
        assert_eq!(Interval::of_median(&[]), None);
        let far_off = [&values(13)[..], &[1e9]].concat();
        assert_eq!(Interval::of_median(&far_off).map(|of| (of.middle, of.high)), Some((7.5, 12.0)));
    }

    #[test]
    fn the_middle_of_odd_even_and_none() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn the_expansion_continues_the_table() {
        near(t_95(30), 2.0423);
        near(t_95(31), 2.0395);
        near(t_95(120), 1.9799);
        assert!(t_95(1_000_000) - 1.959_964 < 1e-5);
    }
}
