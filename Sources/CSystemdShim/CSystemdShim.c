#include "CSystemdShim.h"
