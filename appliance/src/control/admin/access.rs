//! Who may change things through the admin API.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use subtle::ConstantTimeEq as _;

/// The fewest characters of a token. A shorter token could be guessed.
const SHORTEST: usize = 16;

/// Who may change things.
#[derive(Clone, Debug)]
pub enum Access {
    /// Every client of the Unix socket, because the file's mode says who is one.
    All,
    /// This client, who has a certificate that `admin.client_ca` has signed. A browser shows it for
    /// the pages of others too.
    Certificate,
    /// A client with the token in this file, or nobody. `certificates`: also clients with a
    /// certificate, whose connections have [`Self::Certificate`].
    Token { file: Option<Arc<Path>>, certificates: bool },
}

impl Access {
    /// # Errors
    /// The file has no token.
    pub fn with_token(file: Option<PathBuf>, certificates: bool) -> Result<Self, String> {
        if let Some(file) = &file {
            token(file)?;
        }
        Ok(Self::Token { file: file.map(Arc::from), certificates })
    }

    /// Whether a client with these headers may change things. The file is read each time, so that a
    /// new token is in force at once. The text is for the client.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), String> {
        let file = match self {
            Self::All => return Ok(()),
            Self::Certificate => return of_no_other_page(headers),
            Self::Token { file: None, certificates: true } => {
                return Err(
                    "a change needs a certificate that admin.client_ca has signed, or the \
                            Unix socket (admin.socket)"
                        .to_owned(),
                );
            }
            Self::Token { file: None, certificates: false } => {
                return Err("this address is for reading only: use the Unix socket \
                            (admin.socket), or configure admin.token_file and send \
                            `Authorization: Bearer TOKEN`"
                    .to_owned());
            }
            Self::Token { file: Some(file), .. } => file,
        };
        let given = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
        let Some(given) = given.and_then(|value| value.strip_prefix(b"Bearer ")) else {
            return Err("a change needs the token of admin.token_file: send `Authorization: \
                        Bearer TOKEN`"
                .to_owned());
        };
        // The text of the file's fault has the path of the file, which is for the log only.
        let token = token(file).map_err(|error| {
            tracing::error!("{error}");
            "admin.token_file can't be read; the log says why".to_owned()
        })?;
        match bool::from(token.as_bytes().ct_eq(given)) {
            true => Ok(()),
            false => Err("the token is not that of admin.token_file".to_owned()),
        }
    }
}

fn token(file: &Path) -> Result<String, String> {
    let name = file.display();
    let text =
        fs::read_to_string(file).map_err(|error| format!("admin.token_file: {name}: {error}"))?;
    let token = text.trim();
    if token.len() < SHORTEST || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "admin.token_file: {name}: a token has {SHORTEST} or more visible ASCII characters, \
             and nothing else is in the file"
        ));
    }
    Ok(token.to_owned())
}

/// Browsers say where a request comes from (Fetch Metadata, section 2.4). Other clients do not.
fn of_no_other_page(headers: &HeaderMap) -> Result<(), String> {
    match headers.get("sec-fetch-site").map(|site| site.as_bytes()) {
        None | Some(b"same-origin" | b"none") => Ok(()),
        Some(_) => Err("a change is asked for by a page of another site".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_the_token_of_the_file_lets_change() {
        let file = std::env::temp_dir().join(format!("ringway-token-{}", std::process::id()));
        fs::write(&file, "0123456789abcdef\n").expect("a temporary file");
        let access = Access::with_token(Some(file.clone()), false).expect("a token");
        let says = |value: &'static str| {
            let value = HeaderValue::from_static(value);
            access.check(&HeaderMap::from_iter([(AUTHORIZATION, value)])).is_ok()
        };
        assert!(says("Bearer 0123456789abcdef"));
        let wrong =
            ["Bearer 0123456789abcdeF", "Bearer 0123456789abcde", "Bearer ", "0123456789abcdef"];
        assert!(!wrong.into_iter().any(says));
        assert!(access.check(&HeaderMap::new()).is_err());
        fs::write(&file, "fedcba9876543210").expect("a temporary file");
        assert!(says("Bearer fedcba9876543210") && !says("Bearer 0123456789abcdef"));
        fs::write(&file, "short").expect("a temporary file");
        assert!(!says("Bearer short") && Access::with_token(Some(file.clone()), false).is_err());
        fs::remove_file(&file).expect("a temporary file");
        assert!(Access::with_token(Some(file), false).is_err());
    }

    #[test]
    fn nobody_may_change_things_without_a_token_file() {
        let nobody = Access::Token { file: None, certificates: false };
        let said = nobody.check(&HeaderMap::new()).expect_err("refused");
        assert!(said.contains("admin.socket") && said.contains("admin.token_file"), "{said}");
        let others = Access::Token { file: None, certificates: true };
        let said = others.check(&HeaderMap::new()).expect_err("refused");
        assert!(said.contains("admin.client_ca"), "{said}");
        assert_eq!(Access::All.check(&HeaderMap::new()), Ok(()));
        assert_eq!(Access::Certificate.check(&HeaderMap::new()), Ok(()));
        let from = |site| HeaderMap::from_iter([("sec-fetch-site".parse().expect("a name"), site)]);
        let check =
            |site: &'static str| Access::Certificate.check(&from(site.parse().expect("text")));
        assert!(check("same-origin").is_ok() && check("none").is_ok());
        assert!(check("cross-site").is_err() && check("same-site").is_err());
    }
}
