//! Attached Asterisks: drawn histories, and every step of one key with two writers.

use simulations::edge::history::draw;
use simulations::edge::run;

#[test]
fn at_rest_every_asterisk_has_what_its_node_shows() {
    for seed in 1..=300 {
        let ran = run(draw(seed));
        assert_eq!(ran.violation, None, "seed {seed}");
    }
}
