"""The programs and shell lines; in packages what only they use: tables, pictures, report, exchange,
finding, detection, documents, bench."""
