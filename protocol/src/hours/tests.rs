use super::*;

fn at(text: &str) -> LocalTime {
    let (day, time) = text.split_once(' ').unwrap();
    let (hour, minute) = time.split_once(':').unwrap();
    let day = DAYS.iter().position(|d| *d == day).unwrap();
    LocalTime::new(day as u8, hour.parse().unwrap(), minute.parse().unwrap())
}

#[test]
fn a_span_covers_what_people_mean_by_it() {
    for (spans, open, closed) in [
        (
            &["Mon-Fri 02:00-04:30"][..],
            &["Mon 02:00", "Fri 04:29"][..],
            &["Mon 01:59", "Fri 04:30", "Sat 03:00"][..],
        ),
        (
            &["Fri 22:00-06:00"],
            &["Fri 22:00", "Fri 23:59", "Sat 05:59"],
            &["Fri 21:59", "Sat 06:00", "Fri 05:00"],
        ),
        (&["Sun 22:00-06:00"], &["Sun 23:00", "Mon 05:00"], &["Mon 22:30", "Sun 05:00"]),
        (&["Fri-Mon 12:00-13:00"], &["Fri 12:30", "Sun 12:30", "Mon 12:30"], &["Tue 12:30", "Thu 12:30"]),
        (&["sat,SUN 00:00-24:00"], &["Sat 00:00", "Sun 23:59"], &["Mon 00:00", "Fri 23:59"]),
        (&["01:00-02:00", "Wed 05:00-06:00"], &["Tue 01:30", "Wed 05:30"], &["Tue 05:30"]),
        (&[], &["Mon 00:00", "Thu 17:31"], &[]),
    ] {
        let hours = MaintenanceHours::parse(spans).unwrap();
        for moment in open {
            assert!(hours.open(at(moment)), "{hours} is closed on {moment}");
        }
        for moment in closed {
            assert!(!hours.open(at(moment)), "{hours} is open on {moment}");
        }
    }
}

#[test]
fn who_waits_is_told_for_how_long() {
    let hours = MaintenanceHours::parse(&["Mon 02:00-04:00"]).unwrap();
    assert_eq!(hours.changes_in(at("Mon 01:00")), Some(60));
    assert_eq!(hours.changes_in(at("Mon 03:59")), Some(1));
    assert_eq!(hours.changes_in(at("Mon 04:00")), Some(WEEK - 120), "until next week");
    assert_eq!(MaintenanceHours::default().changes_in(at("Mon 01:00")), None);
    assert_eq!(MaintenanceHours::parse(&["00:00-24:00"]).unwrap().changes_in(at("Mon 01:00")), None);
}

#[test]
fn a_mistake_is_named_and_nothing_else_is_believed() {
    for (text, why) in [
        ("", "expected"),
        ("Mon", "dash"),
        ("Mon 02:00", "dash"),
        ("Mon 2:00-3:00", "24:00"),
        ("Mon 02:00-25:00", "24:00"),
        ("Mon 02:60-03:00", "24:00"),
        ("Mon 24:01-03:00", "24:00"),
        ("Mon +2:00-03:00", "24:00"),
        ("24:00-03:00", "empty"),
        ("02:00-02:00", "empty"),
        ("Moon 02:00-03:00", "days"),
        ("Mon, 02:00-03:00", "days"),
        ("Mon 02:00-03:00 UTC", "expected"),
        (&"x".repeat(41), "40"),
    ] {
        let error = MaintenanceHours::parse(&[text]).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("22:00-06:00"), "{text:?} gave {error}");
    }
    assert!(
        MaintenanceHours::parse(&["01:00-02:00"; MAX_SPANS + 1]).unwrap_err().to_string().contains("8 spans")
    );
}

#[test]
fn the_text_reads_back_to_the_same_hours_and_stays_within_its_bound() {
    for text in ["Mon-Fri 02:00-04:30", "Sat,Sun 22:00-06:00", "00:00-24:00", "Mon-Sat 00:00-24:00"] {
        let hours = MaintenanceHours::parse(&[text]).unwrap();
        let json = serde_json::to_string(&hours).unwrap();
        assert_eq!(serde_json::from_str::<MaintenanceHours>(&json).unwrap(), hours, "{json}");
        assert!(hours.to_string().len() <= MAX_SPAN_TEXT, "{hours}");
    }
    assert!(serde_json::from_str::<MaintenanceHours>("[\"nonsense\"]").is_err());
}
