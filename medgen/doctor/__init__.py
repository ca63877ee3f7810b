"""What is wrong with a cohort, an experiment or a model, what is odd, and what it will cost."""

from medgen.doctor.diagnose import diagnose
from medgen.doctor.finding import Diagnosis, Finding, print_table

__all__ = ["Diagnosis", "Finding", "diagnose", "print_table"]
