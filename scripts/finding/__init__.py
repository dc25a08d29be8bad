"""What there is: methods and tables, work on the disk, what two runs differ in, where a number is
from."""
