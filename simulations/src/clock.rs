//! Wall clocks of simulated nodes: a function of virtual time that may be skewed, drift, jump or stand.
//!
//! Never here: the clock of the machine that runs the simulation.

use kinfolk::core::clock::UnixMs;

/// Virtual time since the start of the world, in microseconds.
pub type Us = u64;

pub const MS: Us = 1_000;
pub const SECOND: Us = 1_000_000;
pub const MINUTE: Us = 60 * SECOND;
pub const HOUR: Us = 60 * MINUTE;

/// What a true clock shows when the world begins.
pub const START_UNIX_MS: UnixMs = 1_790_000_000_000;
pub const YEAR_MS: i64 = 31_536_000_000;

#[derive(Clone, Debug, Default)]
pub struct WallClock {
    pub offset_ms: i64,
    /// How much faster than true time it runs, in millionths.
    pub drift_ppm: i64,
    frozen_at_us: Option<Us>,
}

impl WallClock {
    pub fn new(offset_ms: i64, drift_ppm: i64) -> Self {
        Self { offset_ms, drift_ppm, frozen_at_us: None }
    }

    pub fn now(&self, world: Us) -> UnixMs {
        let us = self.frozen_at_us.unwrap_or(world) as i64;
        let drift_ms = us / 1_000 * self.drift_ppm / 1_000_000;
        (START_UNIX_MS as i64 + us / 1_000 + drift_ms + self.offset_ms).max(0) as UnixMs
    }

    pub fn jump(&mut self, by_ms: i64) {
        self.offset_ms += by_ms;
    }

    pub fn freeze(&mut self, world: Us) {
        self.frozen_at_us.get_or_insert(world);
    }

    pub fn thaw(&mut self) {
        self.frozen_at_us = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_drifts_jumps_and_stands_as_it_is_told() {
        let mut clock = WallClock::new(50, 1_000);
        assert_eq!(clock.now(0), START_UNIX_MS + 50);
        assert_eq!(clock.now(1_000 * SECOND), START_UNIX_MS + 50 + 1_000_000 + 1_000);
        clock.jump(-3_600_000);
        assert_eq!(clock.now(0), START_UNIX_MS + 50 - 3_600_000);
        clock.freeze(SECOND);
        assert_eq!(clock.now(HOUR), clock.now(SECOND));
        clock.thaw();
        assert!(clock.now(HOUR) > clock.now(SECOND));
    }
}
