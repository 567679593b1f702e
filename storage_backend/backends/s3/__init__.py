"""Objects in Amazon S3, and in everything that speaks its protocol."""
