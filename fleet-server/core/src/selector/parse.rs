//! Text to selector: a tokenizer that keeps columns, and recursive descent with a bounded depth.

use super::{Expr, MAX_DEPTH, MAX_LENGTH};

/// A text that is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("selector {text:?}, column {column}: {expected}")]
pub struct SelectorError {
    /// The selector, cut to 200 characters.
    pub text: String,
    /// Where, from 1, in characters.
    pub column: usize,
    /// What was expected, and what was found.
    pub expected: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Quoted(String),
    Equal,
    NotEqual,
    Open,
    Close,
    Comma,
    End,
}

impl Token {
    fn shown(&self) -> String {
        match self {
            Self::Word(word) => format!("{word:?}"),
            Self::Quoted(text) => format!("the quoted {text:?}"),
            Self::Equal => "\"=\"".to_owned(),
            Self::NotEqual => "\"!=\"".to_owned(),
            Self::Open => "\"(\"".to_owned(),
            Self::Close => "\")\"".to_owned(),
            Self::Comma => "\",\"".to_owned(),
            Self::End => "the end".to_owned(),
        }
    }

    fn is_keyword(&self, keyword: &str) -> bool {
        matches!(self, Self::Word(word) if word == keyword)
    }
}

/// Words that a name or an unquoted value cannot be.
const KEYWORDS: [&str; 4] = ["and", "or", "not", "in"];

pub(super) fn parse(text: &str) -> Result<Expr, SelectorError> {
    if text.len() > MAX_LENGTH {
        let expected = format!("at most {MAX_LENGTH} bytes are read; this one has {}", text.len());
        return Err(SelectorError { text: cut(text), column: MAX_LENGTH + 1, expected });
    }
    let mut parser = Parser { text, tokens: tokens(text)?, at: 0, depth: 0 };
    if *parser.peek() == Token::End {
        return Ok(Expr::Everything);
    }
    let expr = parser.any()?;
    match parser.peek() {
        Token::End => Ok(expr),
        _ => Err(parser.expected("\"and\", \"or\" or the end")),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(200).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || "_-.:/+*@".contains(c)
}

fn tokens(text: &str) -> Result<Vec<(usize, Token)>, SelectorError> {
    let refuse = |column, expected: String| Err(SelectorError { text: cut(text), column, expected });
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        let column = at + 1;
        at += 1;
        let token = match c {
            c if c.is_whitespace() => continue,
            '(' => Token::Open,
            ')' => Token::Close,
            ',' => Token::Comma,
            '=' => Token::Equal,
            '!' if chars.get(at) == Some(&'=') => {
                at += 1;
                Token::NotEqual
            }
            quote @ ('"' | '\'') => {
                let rest = chars.get(at..).unwrap_or_default();
                let Some(length) = rest.iter().position(|c| *c == quote) else {
                    return refuse(
                        column,
                        format!("this quote is never closed: a second {quote} is missing"),
                    );
                };
                at += length + 1;
                Token::Quoted(rest.iter().take(length).collect())
            }
            c if is_word(c) => {
                let rest = chars.get(at..).unwrap_or_default();
                let more = rest.iter().take_while(|c| is_word(**c)).count();
                at += more;
                Token::Word(std::iter::once(c).chain(rest.iter().take(more).copied()).collect())
            }
            other => {
                return refuse(
                    column,
                    format!("{other:?} has no meaning here; put a value with it in quotes"),
                );
            }
        };
        tokens.push((column, token));
    }
    tokens.push((chars.len() + 1, Token::End));
    Ok(tokens)
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<(usize, Token)>,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |(_, token)| token)
    }

    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn take_if(&mut self, keyword: &str) -> bool {
        let found = self.peek().is_keyword(keyword);
        self.at += usize::from(found);
        found
    }

    fn column(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |(column, _)| *column)
    }

    fn expected(&self, what: &str) -> SelectorError {
        let expected = format!("expected {what}, found {}", self.peek().shown());
        SelectorError { text: cut(self.text), column: self.column(), expected }
    }

    fn any(&mut self) -> Result<Expr, SelectorError> {
        let mut parts = vec![self.all()?];
        while self.take_if("or") {
            parts.push(self.all()?);
        }
        Ok(one_or(parts, Expr::Any))
    }

    fn all(&mut self) -> Result<Expr, SelectorError> {
        let mut parts = vec![self.one()?];
        while self.take_if("and") {
            parts.push(self.one()?);
        }
        Ok(one_or(parts, Expr::All))
    }

    fn one(&mut self) -> Result<Expr, SelectorError> {
        if self.depth >= MAX_DEPTH {
            return Err(self.expected(&format!("at most {MAX_DEPTH} nested groups")));
        }
        self.depth += 1;
        let expr = if self.take_if("not") {
            Ok(Expr::Not(Box::new(self.one()?)))
        } else if *self.peek() == Token::Open {
            self.at += 1;
            let inner = self.any()?;
            self.close("\"and\", \"or\" or \")\"")?;
            Ok(inner)
        } else {
            self.comparison()
        };
        self.depth -= 1;
        expr
    }

    fn close(&mut self, what: &str) -> Result<(), SelectorError> {
        if *self.peek() != Token::Close {
            return Err(self.expected(what));
        }
        self.at += 1;
        Ok(())
    }

    fn comparison(&mut self) -> Result<Expr, SelectorError> {
        let name = match self.peek() {
            Token::Word(word) if !KEYWORDS.contains(&word.as_str()) => word.clone(),
            _ => {
                return Err(
                    self.expected("the name of a label, device, arch, agent_version, \"not\" or \"(\"")
                );
            }
        };
        self.at += 1;
        match self.peek() {
            Token::Equal => {
                self.at += 1;
                Ok(Expr::In { name, values: vec![self.value()?] })
            }
            Token::NotEqual => {
                self.at += 1;
                Ok(not(Expr::In { name, values: vec![self.value()?] }))
            }
            token if token.is_keyword("in") => {
                self.at += 1;
                self.list(name)
            }
            token if token.is_keyword("not") => {
                self.at += 1;
                if !self.take_if("in") {
                    return Err(self.expected("\"in\""));
                }
                self.list(name).map(not)
            }
            _ => Err(self.expected("\"=\", \"!=\", \"in\" or \"not in\"")),
        }
    }

    fn list(&mut self, name: String) -> Result<Expr, SelectorError> {
        if *self.peek() != Token::Open {
            return Err(self.expected("\"(\""));
        }
        self.at += 1;
        let mut values = vec![self.value()?];
        while *self.peek() == Token::Comma {
            self.at += 1;
            values.push(self.value()?);
        }
        self.close("\",\" or \")\"")?;
        Ok(Expr::In { name, values })
    }

    fn value(&mut self) -> Result<String, SelectorError> {
        match self.peek() {
            Token::Word(word) if KEYWORDS.contains(&word.as_str()) => {
                Err(self.expected(&format!("a value (write \"{word}\" in quotes to mean the word)")))
            }
            Token::Word(_) | Token::Quoted(_) => match self.take() {
                Token::Word(value) | Token::Quoted(value) => Ok(value),
                _ => Err(self.expected("a value")),
            },
            _ => Err(self.expected("a value")),
        }
    }
}

fn not(expr: Expr) -> Expr {
    Expr::Not(Box::new(expr))
}

fn one_or(mut parts: Vec<Expr>, many: fn(Vec<Expr>) -> Expr) -> Expr {
    match parts.pop() {
        Some(only) if parts.is_empty() => only,
        Some(last) => {
            parts.push(last);
            many(parts)
        }
        None => Expr::Everything,
    }
}
