//! What each selector selects, and what each broken one is told.

use proptest::prelude::*;

use super::*;

fn cam() -> Attributes {
    Attributes {
        device: "cam-1".into(),
        arch: "aarch64".into(),
        agent_version: "0.1.0".into(),
        labels: BTreeMap::from([("site".into(), "lyon".into()), ("room".into(), "boiler 2".into())]),
    }
}

fn check(text: &str, expect: bool) {
    let selector = Selector::parse(text).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(selector.matches(&cam()), expect, "{text}");
    let again = Selector::parse(&selector.to_string()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(again.matches(&cam()), expect, "{text} written out as {selector}");
}

#[test]
fn a_selector_selects_what_it_says() {
    check("", true);
    check("  ", true);
    check("site = lyon", true);
    check("site=lyon and arch in (aarch64, armv7) and not tag = lab", true);
    check("site = turin", false);
    check("site != turin", true);
    check("tag != lab", true);
    check("tag = lab", false);
    check("not tag = lab", true);
    check("arch not in (x86_64)", true);
    check("arch not in (x86_64, aarch64)", false);
    check("device = cam-1", true);
    check("agent_version in (0.1.0, 0.1.1)", true);
    check("room = \"boiler 2\"", true);
    check("room = 'boiler 2'", true);
    check("not not site = lyon", true);
}

#[test]
fn and_binds_tighter_than_or_and_not_tightest() {
    check("site = lyon or site = turin and arch = armv7", true);
    check("(site = lyon or site = turin) and arch = armv7", false);
    check("not site = turin and arch = armv7", false);
    check("not (site = turin and arch = armv7)", true);
}

fn refused(text: &str, column: usize, expect: &str) {
    let error = Selector::parse(text).expect_err(text);
    assert_eq!(error.column, column, "{error}");
    assert!(error.to_string().contains(expect), "{error} does not say {expect:?}");
}

#[test]
fn a_broken_selector_is_told_where_and_what() {
    refused("site", 5, "expected \"=\", \"!=\", \"in\" or \"not in\", found the end");
    refused("site = ", 8, "expected a value, found the end");
    refused("site = lyon arch = x", 13, "expected \"and\", \"or\" or the end, found \"arch\"");
    refused("site in lyon", 9, "expected \"(\", found \"lyon\"");
    refused("site in (lyon", 14, "expected \",\" or \")\"");
    refused("site in ()", 10, "expected a value, found \")\"");
    refused("(site = lyon", 13, "expected \"and\", \"or\" or \")\"");
    refused("site = lyon)", 12, "found \")\"");
    refused("and", 1, "the name of a label");
    refused("site = and", 8, "in quotes");
    refused("site = \"lyon", 8, "never closed");
    refused("site & x", 6, "no meaning");
    refused("é = x and ?", 11, "no meaning");
    refused("site not lyon", 10, "expected \"in\"");
    refused(&"(".repeat(100), MAX_DEPTH + 1, "nested");
    refused(&"x".repeat(MAX_LENGTH + 1), MAX_LENGTH + 1, "at most");
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,60}") {
        let _ = Selector::parse(&text);
    }

    #[test]
    fn no_mix_of_tokens_panics_and_what_parses_round_trips(
        parts in prop::collection::vec(
            prop::sample::select(vec!["site", "lyon", "=", "!=", "in", "not", "and", "or", "(", ")", ",", "'a b'"]), 0..14)
    ) {
        if let Ok(selector) = Selector::parse(&parts.join(" ")) {
            let again = Selector::parse(&selector.to_string()).unwrap();
            prop_assert_eq!(again.matches(&cam()), selector.matches(&cam()));
        }
    }
}
