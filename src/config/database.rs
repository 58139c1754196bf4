//! Which database holds the logs.

use std::path::{Path, PathBuf};

use crate::secrets::Secret;

/// Name of the default SQLite file in the data directory.
const SQLITE_FILE: &str = "sealwire.db";

/// Which database holds the logs. It has no `Debug`: a URL may hold a password.
#[derive(Clone)]
pub enum Database {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// A PostgreSQL server, by its whole URL.
    Postgres(Secret),
}

impl Database {
    /// The default: a SQLite file in the data directory.
    #[must_use]
    pub fn in_directory(data_dir: &Path) -> Self {
        Self::Sqlite(data_dir.join(SQLITE_FILE))
    }

    /// Reads a URL. None if it is for no database that Sealwire knows.
    #[must_use]
    pub fn parse(url: &str) -> Option<Self> {
        if let Some(rest) = url.strip_prefix("sqlite:") {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            // The relay sets SQLite's parameters itself: durability depends on them.
            let usable = !path.is_empty() && !path.contains('?') && path != ":memory:";
            return usable.then(|| Self::Sqlite(PathBuf::from(path)));
        }
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"))?;
        (!rest.is_empty()).then(|| Self::Postgres(Secret::new(url.to_owned())))
    }

    /// The URL for the store, with everything that is secret in it.
    #[must_use]
    pub fn to_url(&self) -> String {
        match self {
            Self::Sqlite(path) => {
                // The store reads a URL; a path may hold what means something else in one.
                let path = path.display().to_string().replace('%', "%25").replace('?', "%3F");
                format!("sqlite://{path}")
            }
            Self::Postgres(url) => url.expose().to_owned(),
        }
    }

    /// The URL without what may be secret: neither user, password nor parameters.
    #[must_use]
    pub fn redacted(&self) -> String {
        match self {
            Self::Sqlite(path) => format!("sqlite:{}", path.display()),
            Self::Postgres(url) => {
                let rest = url.expose().split_once("://").map_or("", |(_, rest)| rest);
                let (place, parameters) = rest.split_once(['?', '#']).unwrap_or((rest, ""));
                // A password may hold an @ that nobody escaped: the last one ends it. If it holds a
                // question mark as well, nothing can be told apart any more.
                let place = place.rsplit_once('@').map_or(place, |(_, host)| host);
                let place = if parameters.contains('@') { "(not shown)" } else { place };
                format!("postgres://{place}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(url: &str) -> String {
        Database::parse(url).expect("a URL").redacted()
    }

    #[test]
    fn a_shown_url_holds_no_password() {
        assert_eq!(
            redacted("postgres://u:pass@db.example/sealwire"),
            "postgres://db.example/sealwire"
        );
        assert_eq!(redacted("postgresql://u:p@ss@db:5432/s?password=x"), "postgres://db:5432/s");
        assert_eq!(redacted("postgres:///s?host=/run/postgresql&user=u"), "postgres:///s");
        assert_eq!(redacted("postgres://u:p?a@host/s"), "postgres://(not shown)");
        assert_eq!(redacted("sqlite://data/x.db"), "sqlite:data/x.db");
    }

    #[test]
    fn a_path_reaches_the_store_as_it_was_given() {
        let path = Path::new("./da?ta/50%").join(SQLITE_FILE);
        let url = Database::in_directory(Path::new("./da?ta/50%")).to_url();
        let options: sqlx::sqlite::SqliteConnectOptions = url.parse().unwrap();
        assert_eq!(options.get_filename(), path);
    }

    #[test]
    fn a_url_for_another_database_is_refused() {
        for url in ["mysql://host/db", "data.db", "", "sqlite:", "sqlite::memory:", "postgres://"] {
            assert!(Database::parse(url).is_none(), "{url}");
        }
        assert!(Database::parse("sqlite:x.db?mode=memory").is_none());
        assert!(
            matches!(Database::parse("sqlite:///var/x.db"), Some(Database::Sqlite(path)) if path == Path::new("/var/x.db"))
        );
    }
}
