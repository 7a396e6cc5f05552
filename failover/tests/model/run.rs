//! Running a model: explore all of it, print what was seen, expect properties to hold or to break.

use std::{fmt::Debug, hash::Hash, time::Instant};

use stateright::{Checker, Model};

/// The bounds asked for by `SIDEPATH_MODEL=long`.
pub(crate) fn long() -> bool {
    std::env::var("SIDEPATH_MODEL").is_ok_and(|v| v == "long")
}

/// Every state is visited and every property holds; there are at least `floor` states.
pub(crate) fn holds<M>(name: &str, model: M, floor: usize)
where
    M: Model + Send + Sync + 'static,
    M::State: Debug + Hash + Send + Sync + Clone + PartialEq,
    M::Action: Debug + Clone + PartialEq + Send + Sync,
{
    let began = Instant::now();
    let checker = model.checker().threads(2).spawn_bfs().join();
    let states = checker.unique_state_count();
    println!(
        "{name}: {states} states, {} steps deep, {:.1} s",
        checker.max_depth(),
        began.elapsed().as_secs_f64()
    );
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        let expected = property.expectation == stateright::Expectation::Sometimes;
        if let Some(path) = found.as_ref().filter(|_| !expected) {
            panic!("{name}: \"{}\" is broken by\n{path}", property.name);
        }
        assert!(found.is_some() || !expected, "{name}: \"{}\" never happens", property.name);
    }
    assert!(states >= floor, "{name}: only {states} of at least {floor} states: an action is gone");
}

/// The property is broken: the planted bug is seen by it.
pub(crate) fn breaks<M>(name: &str, model: M, property: &'static str)
where
    M: Model + Send + Sync + 'static,
    M::State: Debug + Hash + Send + Sync + Clone + PartialEq,
    M::Action: Debug + Clone + PartialEq + Send + Sync,
{
    assert!(model.properties().iter().any(|p| p.name == property), "no property \"{property}\"");
    let until = stateright::HasDiscoveries::AnyOf([property].into());
    let checker = model.checker().threads(2).finish_when(until).spawn_bfs().join();
    let found = checker.discovery(property);
    let steps = found.map(|p| p.into_actions().len());
    println!("{name}: {} states, found in {steps:?} steps", checker.unique_state_count());
    assert!(steps.is_some(), "{name}: the planted bug was not found by \"{property}\"");
}
