//! Numbers that look drawn, the same for the same seed.

/// A generator of numbers (SplitMix64): small, and good enough for demand.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator of a seed. Seeds that follow each other have nothing in common.
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed);
        Self(random.draw())
    }

    /// Any number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below 1.
    pub fn unit(&mut self) -> f64 {
        let [high, low] = [self.draw() >> 32, self.draw() >> 32];
        let part = |bits: u64| f64::from(u32::try_from(bits).unwrap_or(u32::MAX));
        (part(high) + part(low) / 4_294_967_296.0) / 4_294_967_296.0
    }

    /// From 0 to below `end`; 0 when that is nothing.
    pub fn below(&mut self, end: u32) -> u32 {
        let drawn = (self.draw() >> 32) * u64::from(end);
        u32::try_from(drawn >> 32).unwrap_or(0)
    }

    /// Of an exponential distribution with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }

    /// Of the normal distribution with mean 0 and deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// An index, each as often as its weight says.
    pub fn pick(&mut self, weights: &[f64]) -> usize {
        let sum: f64 = weights.iter().sum();
        let mut left = self.unit() * sum;
        for (index, weight) in weights.iter().enumerate() {
            left -= weight;
            if left < 0.0 {
                return index;
            }
        }
        weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(mut draw: impl FnMut(&mut Random) -> f64) -> (f64, f64) {
        let mut random = Random::new(7);
        let drawn: Vec<f64> = (0..40_000).map(|_| draw(&mut random)).collect();
        let mean = drawn.iter().sum::<f64>() / 40_000.0;
        (mean, drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 40_000.0)
    }

    fn near(found: (f64, f64), mean: f64, variance: f64) {
        assert!((found.0 - mean).abs() < 0.03 && (found.1 - variance).abs() < 0.05, "{found:?}");
    }

    #[test]
    fn mean_and_variance_are_those_of_the_distribution() {
        near(moments(Random::unit), 0.5, 1.0 / 12.0);
        near(moments(Random::exponential), 1.0, 1.0);
        near(moments(Random::normal), 0.0, 1.0);
        near(moments(|random| f64::from(random.below(2))), 0.5, 0.25);
        near(moments(|random| f64::from(u8::from(random.pick(&[1.0, 0.0, 3.0]) == 2))), 0.75, 0.1875);
    }

    #[test]
    fn a_seed_says_everything_and_seeds_that_follow_each_other_have_nothing_in_common() {
        let first = |seed| Random::new(seed).unit();
        assert!((first(3) - first(3)).abs() < f64::EPSILON);
        let mean = (0..1000).map(first).sum::<f64>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.05, "{mean}");
    }

    #[test]
    fn what_has_no_weight_is_never_picked() {
        let mut random = Random::new(1);
        assert!((0..1000).all(|_| random.pick(&[0.0, 1.0, 0.0]) == 1));
        assert_eq!(random.below(0), 0);
    }
}
