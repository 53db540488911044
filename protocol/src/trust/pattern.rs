//! Path patterns of delegations: shell wildcards that stay inside one part of a path.
//!
//! `*` any characters, `?` one character, `[a-z0]` one of a class, `[!a-z]` one outside of it; a `[` without its `]`
//! is itself. As in the reference implementation, a pattern has as many parts as the paths that it covers.

/// Whether a pattern covers a path.
pub(super) fn covers(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut parts) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), parts.next()) {
            (None, None) => return true,
            (Some(pattern), Some(part)) if part_matches(&tokens(pattern), part) => {}
            _ => return false,
        }
    }
}

enum Token {
    Any,
    One,
    Literal(char),
    Class { inside: bool, ranges: Vec<(char, char)> },
}

impl Token {
    fn takes(&self, c: char) -> bool {
        match self {
            Self::Any | Self::One => true,
            Self::Literal(own) => *own == c,
            Self::Class { inside, ranges } => {
                ranges.iter().any(|(from, to)| (*from..=*to).contains(&c)) == *inside
            }
        }
    }
}

fn tokens(pattern: &str) -> Vec<Token> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut tokens = Vec::with_capacity(chars.len());
    let mut at = 0;
    while let Some(c) = chars.get(at) {
        at += 1;
        tokens.push(match c {
            '*' => Token::Any,
            '?' => Token::One,
            '[' => match class(&chars[at..]) {
                Some((token, length)) => {
                    at += length;
                    token
                }
                None => Token::Literal('['),
            },
            c => Token::Literal(*c),
        });
    }
    tokens
}

/// A class, from behind its `[`, and how many characters it takes with its `]`.
fn class(chars: &[char]) -> Option<(Token, usize)> {
    let negated = usize::from(chars.first() == Some(&'!'));
    // A `]` that comes first is a member.
    let end = negated + 1 + chars.get(negated + 1..)?.iter().position(|c| *c == ']')?;
    let members = &chars[negated..end];
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Some(from) = members.get(at) {
        match members.get(at + 1..at + 3) {
            Some(['-', to]) => {
                ranges.push((*from, *to));
                at += 3;
            }
            _ => {
                ranges.push((*from, *from));
                at += 1;
            }
        }
    }
    Some((Token::Class { inside: negated == 0, ranges }, end + 1))
}

/// In linear memory, and without going back further than the last `*`.
fn part_matches(pattern: &[Token], part: &str) -> bool {
    let text: Vec<char> = part.chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(c) = text.get(t) {
        match pattern.get(p) {
            Some(Token::Any) => {
                star = Some((p, t));
                p += 1;
            }
            Some(token) if token.takes(*c) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|token| matches!(token, Token::Any))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stays_inside_its_part_of_the_path() {
        for (pattern, path, expect) in [
            ("bundles/m/*/*", "bundles/m/1.0.0/bundle.json", true),
            ("bundles/m/*", "bundles/m/1.0.0/bundle.json", false),
            ("bundles/m/*/*", "bundles/mm/1.0.0/bundle.json", false),
            ("bundles/m/*/*", "bundles/m/1.0.0/a/b", false),
            ("*", "a", true),
            ("*", "a/b", false),
            ("a?c*e", "abcdde", true),
            ("a*b*c", "aXbXbXc", true),
            ("a*b*c", "aXbXbX", false),
            ("**a", "bba", true),
            ("", "", true),
            ("?", "é", true),
            ("?", "", false),
        ] {
            assert_eq!(covers(pattern, path), expect, "{pattern} on {path}");
        }
    }

    #[test]
    fn a_class_takes_one_of_its_characters() {
        // What Python's fnmatch, which the reference uses, says of each.
        for (pattern, path, expect) in [
            ("v[0-9].*", "v3.1", true),
            ("v[0-9].*", "vx.1", false),
            ("v[!0-9]*", "vx.1", true),
            ("v[!0-9]*", "v3.1", false),
            ("[]]x", "]x", true),
            ("[!]]x", "]x", false),
            ("[a-]", "-", true),
            ("[a-", "[a-", true),
            ("[", "[", true),
            ("[]", "[]", true),
            ("[a/b]", "a", false),
        ] {
            assert_eq!(covers(pattern, path), expect, "{pattern} on {path}");
        }
    }
}
