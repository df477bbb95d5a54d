"""What the chapters of these names teach, beyond linear maps and diffusion.

Where to look first for the code behind a chapter; most of it is in the floors above.

01 Patient intake                    mathkit/diffusion/sampling.py
02 Manifolds and pushforwards        mathkit/linear/jacobian.py
03 Three functions                   mathkit/linear/adjoint.py
04 Diffusion and the U-Net           mathkit/diffusion/sampling.py
05 Change-of-basis neurons           mathkit/linear/arrays.py
06 The Jacobian                      mathkit/linear/jacobian.py
07 The pullback                      mathkit/linear/metric.py
08 First treatment, and the error    mathkit/chapters/treatment.py
09 Correlations and eigenfaces       mathkit/chapters/eigenfaces.py
10 Superposition                     mathkit/chapters/superposition.py
11 WᵀW and its eigenvectors          mathkit/linear/power_method.py
12 SVD and the power method          mathkit/linear/power_method.py
13 Reunion                           mathkit/chapters/treatment.py
14 The full treatment                mathkit/tools/experiments.py
"""
